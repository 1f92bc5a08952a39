"""Virtual addresses of a module: vipd holds them, arpreroute repeats their announcements."""
