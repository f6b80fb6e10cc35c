"""The account under which datasets' tests run here."""

import os

CI_HUB_ENDPOINT = os.environ["HF_ENDPOINT"]
CI_HUB_USER = "__DUMMY_DATASETS_SERVER_USER__"
CI_HUB_USER_FULL_NAME = "Dummy Datasets User"
CI_HUB_USER_TOKEN = "hf_conformanceDatasetsUser"
