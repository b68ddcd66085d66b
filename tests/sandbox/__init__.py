"""Tests of the sandbox: is it the API that API.md describes?"""
