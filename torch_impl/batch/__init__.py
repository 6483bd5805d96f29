"""Large sets: photographs by the thousand, on one machine or a Ray cluster, into Parquet, resumable at any moment."""
