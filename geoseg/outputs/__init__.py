"""From objects to users: tables, styles, pictures."""
