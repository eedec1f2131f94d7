"""`aqe sample` as a job: `ray job submit ... -- python jobs/sample_expansions.py --config ... --base-dir ...`."""

from aqe.cli import main, sample

if __name__ == "__main__":
    main(sample)
