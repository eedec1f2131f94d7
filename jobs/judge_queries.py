"""`aqe judge` as a job: `ray job submit ... -- python jobs/judge_queries.py --config ... --base-dir ...`."""

from aqe.cli import judge, main

if __name__ == "__main__":
    main(judge)
