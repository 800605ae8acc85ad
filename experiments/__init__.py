"""One script per job: flags -> functions -> one JSON record and figures."""
