"""``python -m fedsim`` is the command line."""

from fedsim.cli.ending import interruptible

with interruptible():  # what the command line imports takes a moment, too
    from fedsim.cli.app import main

    main()
