"""Videos: frames out of files, decoded in processes of their own, and clips back into files."""
