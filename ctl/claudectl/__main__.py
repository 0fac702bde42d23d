"""``python -m claudectl``."""

from claudectl.main import main

main()
