"""``python -m fedsim`` is the command line."""

from fedsim.cli.app import main

main()
