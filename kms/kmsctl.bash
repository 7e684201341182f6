# bash completion for kmsctl; made by: kmsctl completion bash
_kmsctl()
{
    local cur=${COMP_WORDS[COMP_CWORD]} words= i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        --socket | --config | --timeout | --op | --url | --hsm-socket | --bits | --limit | --key | --checkpoint | --out) ((i++)) ;;
        -*) ;;
        *) words+="${words:+ }${COMP_WORDS[i]}" ;;
        esac
    done
    if [[ $cur == -* ]]; then
        set -- --socket --config --json --timeout --op --help --version --url --hsm-socket --bits --exit --limit --follow --key --checkpoint --out
        COMPREPLY=($(compgen -W "$*" -- "$cur"))
        return
    fi
    case $words in
    "") set -- status database hsm org key resource audit person log reload drain config completion ;;
    database) set -- migrate status ;;
    hsm) set -- init status ;;
    org) set -- add list show suspend resume ;;
    key) set -- show ;;
    resource) set -- show ;;
    audit) set -- tail show key prove export verify check cosign ;;
    person) set -- erase ;;
    log) set -- level ;;
    config) set -- sample check ;;
    completion) set -- bash ;;
    "log level") set -- error warn info debug ;;
    *) set -- ;;
    esac
    COMPREPLY=($(compgen -W "$*" -- "$cur"))
}
complete -o default -F _kmsctl kmsctl
