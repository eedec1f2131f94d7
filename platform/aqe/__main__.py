"""`python -m aqe` is the command `aqe` where the package is not installed."""

from aqe.cli import app

app(prog_name="aqe")
