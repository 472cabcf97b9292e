"""`warmtalk fetch-weights`: the only part of WarmTalk that goes to the network for itself."""
