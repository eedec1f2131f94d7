"""Print the Grafana dashboard: python -m cluster.observability > cluster/observability/dashboard.json"""

import json

from cluster.observability.dashboard import dashboard

if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=1))
