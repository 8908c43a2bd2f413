"""``python -m fedsim`` is the command line."""

from fedsim.cli.start import main

main()
