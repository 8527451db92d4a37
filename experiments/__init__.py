"""Studies: several runs and what they showed. One run is conf/experiment; a question is a file here."""
