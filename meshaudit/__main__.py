"""python -m meshaudit"""

from meshaudit.cli import main

if __name__ == "__main__":
    main()
