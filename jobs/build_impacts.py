"""`aqe impacts` as a job: `ray job submit ... -- python jobs/build_impacts.py --config ... --base-dir ...`."""

from aqe.cli import impacts, main

if __name__ == "__main__":
    main(impacts)
