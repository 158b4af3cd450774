"""The metadata database: tables, migrations, project-scoped repositories."""
