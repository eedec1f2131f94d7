"""`aqe align` as a job: `ray job submit ... -- python jobs/align_model.py --config ... --base-dir ...`."""

from aqe.cli import align, main

if __name__ == "__main__":
    main(align)
