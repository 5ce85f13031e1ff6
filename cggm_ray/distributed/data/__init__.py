"""Ray Data: conversion, extraction and prediction."""
