"""`python -m blip2ft`, the command line as `accelerate launch -m` starts it."""

from blip2ft.cli import main

if __name__ == "__main__":
    main()
