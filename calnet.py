"""Run a Calnet role from a checkout: `python3 calnet.py COMMAND …` does what `calnet.pyz COMMAND …` does."""

from calnet.roles.cli.main import run

if __name__ == "__main__":
    raise SystemExit(run())
