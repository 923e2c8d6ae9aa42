import sys
from pathlib import Path

# importlib's import mode leaves test folders off the path.
sys.path.append(str(Path(__file__).parent))
