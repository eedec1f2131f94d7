"""From the text that a model wrote to the text that is searched."""


def clean(raw: str) -> str:
    """One line, without the blanks around it and in runs: what is appended to the query. May be empty."""
    return " ".join(raw.split())
