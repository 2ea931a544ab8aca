"""What training needs: losses, and what each decision should have been."""
