"""ops ref"""
