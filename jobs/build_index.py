"""`aqe index` as a job: `ray job submit ... -- python jobs/build_index.py --config ... --base-dir ...`."""

from aqe.cli import index, main

if __name__ == "__main__":
    main(index)
