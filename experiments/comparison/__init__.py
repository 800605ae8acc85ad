"""The paper's tables of networks: rows, records, findings, rendering."""
