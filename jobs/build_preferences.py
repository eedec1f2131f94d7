"""`aqe prefer` as a job: `ray job submit ... -- python jobs/build_preferences.py --config ... --base-dir ...`."""

from aqe.cli import main, prefer

if __name__ == "__main__":
    main(prefer)
