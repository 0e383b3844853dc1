"""What a run would need of devices that are not here: shapes and compilers."""
