"""Images of the web with their captions, and what `blip2ft.capfilt` does with each."""
