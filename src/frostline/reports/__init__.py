"""Records to something a person can look at: tables, pictures, files. Knows records and nothing else."""
