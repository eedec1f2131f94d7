"""Queries that the base model writes of passages, for who has a corpus and no judgements (InPars, arXiv 2202.05144)."""
