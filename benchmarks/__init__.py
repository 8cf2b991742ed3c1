"""What measures this project and is not needed to use it: speed beside other libraries, the app under load."""
