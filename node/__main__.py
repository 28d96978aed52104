"""``python -m node`` is ``ai-node``, for where no script is on the path."""

from node.cli import main

if __name__ == "__main__":
    main()
