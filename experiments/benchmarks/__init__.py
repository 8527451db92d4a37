"""Speed and memory beside other packages, each side in its turn in one process."""
