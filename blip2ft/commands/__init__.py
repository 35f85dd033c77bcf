"""What `blip2ft COMMAND` does: each file adds its commands to the parser and runs them."""
