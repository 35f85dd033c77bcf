"""Photos in folders, and indexes of their features: what `blip2ft.index` searches."""
