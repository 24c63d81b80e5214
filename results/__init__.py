"""What runs wrote beside what the papers say: tables, spreadsheets, figures. Reads only; imports no paper."""
