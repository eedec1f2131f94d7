"""`aqe evaluate` as a job: `ray job submit ... -- python jobs/evaluate_expander.py --config ... --base-dir ...`."""

from aqe.cli import evaluate, main

if __name__ == "__main__":
    main(evaluate)
