"""One model measured whole: what it retrieves, what it captions, with controls beside both (`eval tradeoff`)."""
