"""What a run tells its reader: intervals, comparisons, calibration and the report."""
