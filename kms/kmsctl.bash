# bash completion for kmsctl; made by: kmsctl completion bash
_kmsctl()
{
    local cur=${COMP_WORDS[COMP_CWORD]} words= i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        --socket | --config | --timeout | --op | --url | --hsm-socket | --bits | --limit | --for | --backup | --sample | --key | --checkpoint | --out | --identity | --purpose | --org | --kind | --rate | --breadth | --public-key | --custodian | --from | --to | --expires | --sealed-until | --hash | --why | --state | --issuer | --note) ((i++)) ;;
        -*) ;;
        *) words+="${words:+ }${COMP_WORDS[i]}" ;;
        esac
    done
    if [[ $cur == -* ]]; then
        set -- --socket --config --json --timeout --op --help --version --url --hsm-socket --bits --exit --limit --follow --watch --for --dry-run --check --backup --sample --all --key --checkpoint --out --identity --purpose --org --kind --rate --breadth --public-key --custodian --from --to --expires --sealed-until --hash --why --state --issuer --note
        COMPREPLY=($(compgen -W "$*" -- "$cur"))
        return
    fi
    case $words in
    "") set -- status database hsm org key resource audit person log reload drain config completion purpose service matter approvals rule canary explain cmk root wrapping-key rotation freeze thaw backup restore recording destruction retention certificate ;;
    database) set -- migrate status ;;
    hsm) set -- init status ;;
    org) set -- add list show suspend resume set get destroy ;;
    key) set -- show destroy ;;
    resource) set -- show destroy ;;
    audit) set -- tail show key prove export verify check cosign suspend resume ;;
    person) set -- erase ;;
    log) set -- level ;;
    config) set -- sample check ;;
    completion) set -- bash ;;
    purpose) set -- enable disable list ;;
    service) set -- add change retire list show revoke-certificate ;;
    matter) set -- open approve show list close report ;;
    approvals) set -- list show approve reject ;;
    rule) set -- set list ;;
    canary) set -- add remove list ;;
    cmk) set -- list public-key import activate disable revoke deactivate retire delete default ;;
    root) set -- list rotate retire destroy ;;
    wrapping-key) set -- rotate ;;
    rotation) set -- status ;;
    freeze) set -- resource user purpose service org list ;;
    thaw) set -- resource user purpose service org ;;
    restore) set -- check verify ;;
    recording) set -- destroy ;;
    destruction) set -- list undo ;;
    retention) set -- preview clock confirm-clock ;;
    certificate) set -- list show verify ;;
    "log level") set -- error warn info debug ;;
    *) set -- ;;
    esac
    COMPREPLY=($(compgen -W "$*" -- "$cur"))
}
complete -o default -F _kmsctl kmsctl
