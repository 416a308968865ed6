from nerfcli.cli import main

main()
