"""`aqe run` as a job: `ray job submit ... -- python jobs/run_pipeline.py --config ... --base-dir ...`."""

from aqe.cli import main, run

if __name__ == "__main__":
    main(run)
