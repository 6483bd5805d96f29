"""Speed and memory of the maps against what one would write instead, in one run."""
