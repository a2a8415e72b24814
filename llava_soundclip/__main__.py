from llava_soundclip.cli import main

main()
