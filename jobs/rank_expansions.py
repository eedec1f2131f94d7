"""`aqe rank` as a job: `ray job submit ... -- python jobs/rank_expansions.py --config ... --base-dir ...`."""

from aqe.cli import main, rank

if __name__ == "__main__":
    main(rank)
