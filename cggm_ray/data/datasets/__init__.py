"""One file or folder for each dataset."""
