"""What `blip2ft check` looks at before any GPU hour is spent: images, copies, texts, balance."""
