"""What every verb needs: settings, records, pages."""
