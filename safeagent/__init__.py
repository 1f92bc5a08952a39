"""One process per server, off by default, that answers and tells SNMP managers (guide 10.8): it reads what the modules
publish, and asks safeadmin for what is written."""
